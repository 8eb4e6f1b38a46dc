"""What tests and drills of whole deployments share: a deployment of their own (``lab``), clients
whose every callback is recorded (``cast``), and a look into log files (``disklog``)."""
