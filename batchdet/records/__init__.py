"""What crosses the boundaries between packages: Arrow schemas, segments and detections."""
