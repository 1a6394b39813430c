"""The drawn newsroom: pictures, captions and explanations made on the spot from facts."""
