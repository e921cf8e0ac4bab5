"""Gate and judge: the models, their training and their scores."""
