"""Who is calling: tickets, the keys that sign them, the principals that they prove. Login is the gateway's."""
