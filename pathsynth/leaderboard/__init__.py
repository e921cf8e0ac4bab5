"""Leaderboard by pull request: scores, their checks, cards, and the table."""
