"""How the bundled base model is made: textures, tokenizer, VAE and UNet, trained from scratch."""
