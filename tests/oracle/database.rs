//! What is known of a database, asked as the proxy asks it.

use tidegate::session::catalog::Known;
use tidegate::session::effects::{self, Judgement};
use tidegate::sql::cache::Classifier;
use tidegate::sql::catalog::{self, Catalog};
use tidegate::sql::functions::Rules;
use tidegate::sql::{Need, Why};
use tokio::runtime::Runtime;
use tokio_postgres::{NoTls, SimpleQueryMessage};

pub struct Database {
    known: Known,
    classifier: Classifier,
}

impl Database {
    /// Asks the server on this port.
    pub fn ask(port: u16, database: &str) -> Database {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let runtime = runtime.expect("a runtime");
        let url =
            format!("host=127.0.0.1 port={port} user=postgres password=postgres dbname={database}");
        let (client, connection) = runtime
            .block_on(tokio_postgres::connect(&url, NoTls))
            .expect("connect");
        runtime.spawn(connection);
        rows::<0>(&runtime, &client, "SET search_path = pg_catalog");
        let (effects, suspects) =
            effects::read_full(rows::<3>(&runtime, &client, &effects::full_question()));
        let rules = Rules::default();
        let question = catalog::question(&rules, Some(&suspects));
        let catalog = Catalog::read(rows::<4>(&runtime, &client, &question), None);
        let known = Known::default();
        assert!(known.learn(catalog.into(), Some(effects.into()), 0));
        Database {
            known,
            classifier: Classifier::new(rules, 10_000),
        }
    }

    /// The name that keeps a text from being a read.
    pub fn decisive(&self, sql: &[u8]) -> Option<String> {
        let class = self.classifier.classify(sql, true);
        let catalog = self.known.catalog()?;
        catalog.explain(&class, sql, self.classifier.rules()).1
    }

    /// What a text, which is a write's, may have to do with its session.
    pub fn judge(&self, sql: &[u8]) -> Judgement {
        let class = self.classifier.classify(sql, true);
        let effects = self.known.effects().expect("asked for");
        effects.judge(&class, sql, true)
    }

    /// What a text needs, and why.
    pub fn needs(&self, sql: &[u8]) -> (Need, Why) {
        let class = self.classifier.classify(sql, true);
        match class.asks_catalog {
            true => self.known.needs(&class, sql, self.classifier.rules()),
            false => (class.need, class.why),
        }
    }
}

fn rows<const N: usize>(
    runtime: &Runtime,
    client: &tokio_postgres::Client,
    sql: &str,
) -> Vec<[Option<String>; N]> {
    let answer = runtime.block_on(client.simple_query(sql)).expect(sql);
    let row = |message: SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            Some(std::array::from_fn(|n| row.get(n).map(str::to_owned)))
        }
        _ => None,
    };
    answer.into_iter().filter_map(row).collect()
}
