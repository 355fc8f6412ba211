"""The operator's commands; it alone imports several packages, lazily."""
