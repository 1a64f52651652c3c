"""Figures and tables of finished studies, from MLflow alone."""
