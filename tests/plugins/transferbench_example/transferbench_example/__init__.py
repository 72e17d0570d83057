"""A pretraining method as a plug-in of transferbench."""
