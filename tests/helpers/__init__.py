"""What several tests use: problems, pictures, models."""
