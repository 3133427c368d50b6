"""One file for each claim of the course; test_claims.py collects them."""
