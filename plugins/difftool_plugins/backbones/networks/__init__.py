"""The networks behind the built-in backbones. Importing them imports torch.

They take the batch from `x.shape[0]`, since `len(x)` would fix it in an exported graph.
"""
