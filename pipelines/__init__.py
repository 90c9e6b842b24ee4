"""The stages: finetune, merge, evaluate, sweep, report; the store; the executors."""
