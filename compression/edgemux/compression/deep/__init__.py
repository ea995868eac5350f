"""Deep Compression (Han et al. 2016): connections removed, weights shared, the rest Huffman-coded; storage only."""
