"""The trained model in use: embed, search, explore, export."""
