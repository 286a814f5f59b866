"""What every other package stands on: errors, checked fields, files, units, shipped assets."""
