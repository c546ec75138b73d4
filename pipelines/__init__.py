"""From documents to an index: read, cut, embed, fit, encode, write; and the changes after that."""
