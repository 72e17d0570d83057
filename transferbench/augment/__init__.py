"""A batch of images in, views out; one random draw per image."""
