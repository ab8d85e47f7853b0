"""The private parts of transformers that eas uses. Outside this room only LaVIN's and METER's definitions name them."""
