"""The offline toolchain: trains, compresses, exports, verifies and packs. torch is allowed here, never in serving."""
