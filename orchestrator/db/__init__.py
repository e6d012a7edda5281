"""The database: tables, migrations, transactions, audit and retention."""
