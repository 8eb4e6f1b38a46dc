"""User -> devices -> (IDC, gateway, connection), for all IDCs, and the cross-IDC signal queue."""
