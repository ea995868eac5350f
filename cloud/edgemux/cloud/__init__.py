"""The cloud server: a bundle's full model behind the Open Inference Protocol."""
