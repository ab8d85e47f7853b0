"""What eas needs of transformers' insides. No other room names them, but the definitions of LaVIN and METER."""
