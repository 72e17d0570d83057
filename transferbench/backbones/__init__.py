"""Any pretrained network behind one interface."""
