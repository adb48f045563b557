"""A Django application for django_check.py: models and the migrations that make their tables."""
