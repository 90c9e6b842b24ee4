"""SST-2 and CoLA with written answers, for attacks on their instructions."""
