"""The default transformer and what turns any torch module into one flat vector and back."""
