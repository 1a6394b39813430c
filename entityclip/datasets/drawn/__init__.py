"""What the drawn newsroom is made of: countries and their flags, scenes, wordings."""
