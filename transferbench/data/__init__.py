"""Where images come from: cards, sources, the embedded drawn sets, decoding and splits."""
