"""Callbacks for trainers that make their own optimizers: Lightning's and Hugging Face's.

Where the loop is yours (Accelerate, Fabric, plain torch) there is nothing to add: `Regularizer.attach(optimizer)`.
"""
