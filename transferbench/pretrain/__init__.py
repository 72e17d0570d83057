"""The engine that runs any method: recipe, loop, checkpoint, monitors, run folder."""
