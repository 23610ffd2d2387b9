"""What methods share: traits, fitting, cross-validation."""
