"""Train a network under a schedule. Needs torch, torchvision, timm; never ray, optuna or mlflow."""
