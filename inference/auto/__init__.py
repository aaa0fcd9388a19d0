"""Find the subject of an image that has no trimap."""
