"""Results of any two or more models on the same documents, whoever measured them: read and compared."""
