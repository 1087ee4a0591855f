"""The op in one file: `python -m convt3d.export > model_new.py`.

writer.py       takes from the package what ModelNew needs, and writes it in one piece
own_build.py    what the file has instead of convt3d/build.py: shorter, and free of try
own_module.py   what it has instead of a subclass of torch.nn.ConvTranspose3d
"""
