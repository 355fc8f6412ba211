"""What a profile may have: recipes, the rules that refuse them, and the candidates that are left."""
