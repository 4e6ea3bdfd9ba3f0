"""From documents to a data set: one script a source, and what these scripts share."""
