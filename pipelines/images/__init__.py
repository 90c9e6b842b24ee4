"""Pictures with labels: their data sets, the text heads of their classes, and the image tower that is merged."""
