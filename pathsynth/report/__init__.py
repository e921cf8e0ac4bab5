"""The HTML report of one run, and the tables and charts that other pages share."""
