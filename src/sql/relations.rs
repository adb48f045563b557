//! Which relations differ between a standby and its primary.
//!
//! Owns: the list of system relations that replication carries. Never: knows a user's relations;
//! unlogged ones, and views over what is listed here, are the catalog's to tell.

/// Whether reading a relation may give another answer on a standby.
///
/// Sequences run ahead there, because they are logged 32 values in advance. Which relation is one
/// only the catalog knows, but most have the name that `serial` and `GENERATED` columns give them.
///
/// The server keeps the prefix `pg_` for itself and its extensions, so a name with it that is not
/// known to be replicated counts as local, in whatever schema it was written.
pub fn server_local(schema: Option<&str>, name: &str) -> bool {
    match schema {
        Some(s) if s.starts_with("pg_temp") => true,
        Some("pg_toast") => false,
        _ if name.ends_with("_seq") => true,
        _ => name.starts_with("pg_") && REPLICATED.binary_search(&name).is_err(),
    }
}

/// Whether a column is likely one of a sequence, whatever that is called.
pub fn of_sequences(column: &str) -> bool {
    ["last_value", "log_cnt", "is_called"]
        .iter()
        .any(|name| column.eq_ignore_ascii_case(name))
}

/// System catalogs and the views over them, sorted. Not here: views over shared memory, over the
/// session, over files of the node, and `pg_sequences`, whose last values run ahead on a standby.
pub const REPLICATED: [&str; 80] = [
    "pg_aggregate",
    "pg_am",
    "pg_amop",
    "pg_amproc",
    "pg_attrdef",
    "pg_attribute",
    "pg_auth_members",
    "pg_authid",
    "pg_cast",
    "pg_class",
    "pg_collation",
    "pg_constraint",
    "pg_conversion",
    "pg_database",
    "pg_db_role_setting",
    "pg_default_acl",
    "pg_depend",
    "pg_description",
    "pg_enum",
    "pg_event_trigger",
    "pg_extension",
    "pg_foreign_data_wrapper",
    "pg_foreign_server",
    "pg_foreign_table",
    "pg_group",
    "pg_index",
    "pg_indexes",
    "pg_inherits",
    "pg_init_privs",
    "pg_language",
    "pg_largeobject",
    "pg_largeobject_metadata",
    "pg_matviews",
    "pg_namespace",
    "pg_opclass",
    "pg_operator",
    "pg_opfamily",
    "pg_parameter_acl",
    "pg_partitioned_table",
    "pg_policies",
    "pg_policy",
    "pg_proc",
    "pg_publication",
    "pg_publication_namespace",
    "pg_publication_rel",
    "pg_publication_tables",
    "pg_range",
    "pg_replication_origin",
    "pg_rewrite",
    "pg_roles",
    "pg_rules",
    "pg_seclabel",
    "pg_seclabels",
    "pg_sequence",
    "pg_shadow",
    "pg_shdepend",
    "pg_shdescription",
    "pg_shseclabel",
    "pg_statistic",
    "pg_statistic_ext",
    "pg_statistic_ext_data",
    "pg_stats",
    "pg_stats_ext",
    "pg_stats_ext_exprs",
    "pg_subscription",
    "pg_subscription_rel",
    "pg_tables",
    "pg_tablespace",
    "pg_transform",
    "pg_trigger",
    "pg_ts_config",
    "pg_ts_config_map",
    "pg_ts_dict",
    "pg_ts_parser",
    "pg_ts_template",
    "pg_type",
    "pg_user",
    "pg_user_mapping",
    "pg_user_mappings",
    "pg_views",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted_for_the_search() {
        assert!(REPLICATED.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn only_replicated_relations_are_shared() {
        for (schema, name, local) in [
            (None, "accounts", false),
            (None, "pg_class", false),
            (Some("pg_catalog"), "pg_class", false),
            (Some("information_schema"), "tables", false),
            (None, "pg_stats", false),
            (None, "pg_stat_activity", true),
            (Some("pg_catalog"), "pg_locks", true),
            (None, "pg_statio_user_tables", true),
            (None, "pg_settings", true),
            (None, "pg_sequences", true),
            (None, "pg_sequence", false),
            (None, "accounts_id_seq", true),
            (Some("public"), "accounts_id_seq", true),
            (None, "seq_accounts", false),
            (Some("monitoring"), "pg_stat_statements", true),
            (Some("pg_temp"), "t", true),
            (Some("pg_temp_4"), "t", true),
        ] {
            assert_eq!(server_local(schema, name), local, "{schema:?}.{name}");
        }
    }
}
