"""What tests, benches and `validate` share: references, comparison, the table of layers."""
