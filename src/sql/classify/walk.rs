//! The proof that a parsed query only reads.
//!
//! Owns: which parts of a syntax tree are known, and the names in them. Never: passes over a part.
//! Every struct is taken apart field by field, so that a field that a new version of the parser
//! adds does not compile until it is looked at, and every kind of node that is not listed is an
//! objection.

mod expr;
mod table;
mod words;

use sqlparser::ast::*;

use super::super::functions::{Rules, Safety};
use super::super::relations::{of_sequences, server_local};
use super::{Why, weight};

/// What has been seen so far. Its names are those of all queries walked; its objection is the last
/// query's.
pub(super) struct Walk<'r> {
    rules: &'r Rules,
    functions: Vec<Box<str>>,
    relations: Vec<Box<str>>,
    /// What may stand before a parenthesis: the bare names of calls, of aliases and of types.
    seen: Vec<Box<str>>,
    /// Names that WITH brings into scope.
    scope: Vec<String>,
    objection: Option<Why>,
}

/// Names, sorted.
pub(super) type Names = Box<[Box<str>]>;

impl<'r> Walk<'r> {
    pub fn new(rules: &'r Rules) -> Self {
        Walk {
            rules,
            functions: Vec::new(),
            relations: Vec::new(),
            seen: Vec::new(),
            scope: Vec::new(),
            objection: None,
        }
    }

    /// The functions and the relations named, each once.
    pub fn names(self) -> (Names, Names) {
        let once = |mut names: Vec<Box<str>>| {
            names.sort_unstable();
            names.dedup();
            names.into_boxed_slice()
        };
        (once(self.functions), once(self.relations))
    }

    /// The names so far, to go back to.
    pub fn mark(&self) -> (usize, usize) {
        (self.functions.len(), self.relations.len())
    }

    /// The names since then.
    pub fn names_since(&self, (functions, relations): (usize, usize)) -> (Names, Names) {
        let since = |names: &[Box<str>], from| names.get(from..).unwrap_or(&[]).into();
        (
            since(&self.functions, functions),
            since(&self.relations, relations),
        )
    }

    pub fn add_names(&mut self, (functions, relations): (Names, Names)) {
        self.functions.extend(functions);
        self.relations.extend(relations);
    }

    /// Forgets the names since then: what was taken for names may be none.
    pub fn go_back(&mut self, (functions, relations): (usize, usize)) {
        self.functions.truncate(functions);
        self.relations.truncate(relations);
    }

    /// What is against the query being a read, if anything.
    pub fn take_objection(&mut self) -> Option<Why> {
        self.objection.take()
    }

    /// The names of calls, aliases and types since the last time.
    pub fn take_seen(&mut self) -> Vec<Box<str>> {
        std::mem::take(&mut self.seen)
    }

    fn object(&mut self, why: Why) {
        if self.objection.is_none_or(|old| weight(old) < weight(why)) {
            self.objection = Some(why);
        }
    }

    /// Something that PostgreSQL has not, or that is not known here.
    fn unknown(&mut self) {
        self.object(Why::NotParsed);
    }

    /// Objects unless a part of another dialect is absent.
    fn absent(&mut self, absent: bool) {
        if !absent {
            self.unknown();
        }
    }

    pub fn query(&mut self, query: &Query) {
        let Query {
            with,
            body,
            order_by,
            limit_clause,
            fetch,
            locks,
            for_clause,
            settings,
            format_clause,
            pipe_operators,
        } = query;
        self.absent(
            for_clause.is_none()
                && settings.is_none()
                && format_clause.is_none()
                && pipe_operators.is_empty(),
        );
        if !locks.is_empty() {
            self.object(Why::LockingClause);
        }
        let scope = self.scope.len();
        if let Some(with) = with {
            self.with(with);
        }
        self.set_expr(body);
        if let Some(order_by) = order_by {
            self.order_by(order_by);
        }
        match limit_clause {
            None => {}
            Some(LimitClause::LimitOffset {
                limit,
                offset,
                limit_by,
            }) => {
                self.absent(limit_by.is_empty());
                self.exprs(limit);
                self.exprs(offset.as_ref().map(|Offset { value, rows: _ }| value));
            }
            Some(LimitClause::OffsetCommaLimit { .. }) => self.unknown(),
        }
        if let Some(Fetch {
            with_ties: _,
            percent: _,
            quantity,
        }) = fetch
        {
            self.exprs(quantity);
        }
        self.scope.truncate(scope);
    }

    /// Brings the names of a WITH into scope: for all of it if it is recursive, else for what
    /// follows each.
    fn with(&mut self, with: &With) {
        let With {
            with_token: _,
            recursive,
            cte_tables,
        } = with;
        if *recursive {
            let names = cte_tables.iter().map(|cte| cte.alias.name.value.clone());
            self.scope.extend(names);
        }
        for cte in cte_tables {
            let Cte {
                alias,
                query,
                from,
                materialized: _,
                closing_paren_token: _,
            } = cte;
            self.absent(from.is_none());
            self.query(query);
            self.alias(Some(alias));
            if !recursive {
                self.scope.push(alias.name.value.clone());
            }
        }
    }

    fn set_expr(&mut self, mut set_expr: &SetExpr) {
        // A chain of set operations leans to the left; following it takes no stack.
        while let SetExpr::SetOperation {
            left,
            op: _,
            set_quantifier: _,
            right,
        } = set_expr
        {
            self.set_expr(right);
            set_expr = left;
        }
        match set_expr {
            SetExpr::SetOperation { .. } => {}
            SetExpr::Select(select) => self.select(select),
            SetExpr::Query(query) => self.query(query),
            SetExpr::Values(Values {
                explicit_row,
                value_keyword,
                rows,
            }) => {
                self.absent(!explicit_row && !value_keyword);
                for row in rows {
                    self.exprs(&row.content);
                }
            }
            SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => {
                self.object(Why::DataChange);
            }
            // The parser takes two more tokens after the name, whatever they are, and drops them.
            SetExpr::Table(_) => self.unknown(),
        }
    }

    fn select(&mut self, select: &Select) {
        let Select {
            select_token: _,
            optimizer_hints,
            distinct,
            select_modifiers,
            top,
            top_before_distinct: _,
            projection,
            exclude,
            into,
            from,
            lateral_views,
            prewhere,
            selection,
            connect_by,
            group_by,
            cluster_by,
            distribute_by,
            sort_by,
            having,
            named_window,
            qualify,
            window_before_qualify: _,
            value_table_mode,
            flavor,
        } = select;
        self.absent(
            optimizer_hints.is_empty()
                && select_modifiers.is_none()
                && top.is_none()
                && exclude.is_none()
                && lateral_views.is_empty()
                && prewhere.is_none()
                && connect_by.is_empty()
                && cluster_by.is_empty()
                && distribute_by.is_empty()
                && sort_by.is_empty()
                && qualify.is_none()
                && value_table_mode.is_none()
                && *flavor == SelectFlavor::Standard,
        );
        if into.is_some() {
            self.object(Why::SelectInto);
        }
        if let Some(Distinct::On(exprs)) = distinct {
            self.exprs(exprs);
        }
        for item in projection {
            self.select_item(item);
        }
        for table in from {
            self.table_with_joins(table);
        }
        self.exprs(selection);
        match group_by {
            GroupByExpr::Expressions(exprs, modifiers) => {
                self.absent(modifiers.is_empty());
                self.exprs(exprs);
            }
            GroupByExpr::All(_) => self.unknown(),
        }
        self.exprs(having);
        for NamedWindowDefinition(_, window) in named_window {
            match window {
                NamedWindowExpr::NamedWindow(_) => {}
                NamedWindowExpr::WindowSpec(spec) => self.window(spec),
            }
        }
    }

    fn select_item(&mut self, item: &SelectItem) {
        match item {
            SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, alias: _ } => {
                self.expr(expr);
            }
            SelectItem::ExprWithAliases { .. } => self.unknown(),
            SelectItem::QualifiedWildcard(kind, options) => {
                if let SelectItemQualifiedWildcardKind::Expr(expr) = kind {
                    self.expr(expr);
                }
                self.wildcard(options);
            }
            SelectItem::Wildcard(options) => self.wildcard(options),
        }
    }

    fn wildcard(&mut self, options: &WildcardAdditionalOptions) {
        let WildcardAdditionalOptions {
            wildcard_token: _,
            opt_ilike,
            opt_exclude,
            opt_except,
            opt_replace,
            opt_rename,
            opt_alias: _,
        } = options;
        self.absent(
            opt_ilike.is_none()
                && opt_exclude.is_none()
                && opt_except.is_none()
                && opt_replace.is_none()
                && opt_rename.is_none(),
        );
    }

    fn order_by(&mut self, order_by: &OrderBy) {
        let OrderBy { kind, interpolate } = order_by;
        self.absent(interpolate.is_none());
        match kind {
            OrderByKind::Expressions(exprs) => self.order_by_exprs(exprs),
            OrderByKind::All(_) => self.unknown(),
        }
    }

    fn order_by_exprs(&mut self, exprs: &[OrderByExpr]) {
        for OrderByExpr {
            expr,
            options:
                OrderByOptions {
                    sort: _,
                    nulls_first: _,
                },
            with_fill,
        } in exprs
        {
            self.absent(with_fill.is_none());
            self.expr(expr);
        }
    }

    /// Hands the parts of a name on, if they are all plain.
    fn with_parts(&mut self, name: &ObjectName, then: fn(&mut Self, &[&str])) {
        let parts: Option<Vec<&str>> = name
            .0
            .iter()
            .map(|part| part.as_ident().map(|ident| ident.value.as_str()))
            .collect();
        match parts {
            Some(parts) => then(self, &parts),
            None => self.unknown(),
        }
    }

    /// A relation that is read.
    pub fn relation(&mut self, parts: &[&str]) {
        let Some((schema, name)) = qualified(parts) else {
            return self.unknown();
        };
        if schema.is_none() && self.scope.iter().any(|s| s == name) {
            return;
        }
        if server_local(schema, name) {
            self.object(Why::ServerLocalRelation);
        }
        self.relations.push(written(parts));
    }

    /// A column that is read.
    fn column(&mut self, column: &Ident) {
        if of_sequences(&column.value) {
            self.object(Why::ServerLocalRelation);
        }
    }

    /// A function that is called.
    fn function_name(&mut self, parts: &[&str]) {
        let Some((schema, name)) = qualified(parts) else {
            return self.unknown();
        };
        match self.rules.safety(schema, name) {
            Safety::Safe => {}
            Safety::Unsafe => self.object(Why::UnsafeFunction),
            Safety::Unknown => self.object(Why::UnknownFunction),
        }
        self.seen.push(name.into());
        self.functions.push(written(parts));
    }
}

/// The schema and the name of something, whose database is of no account.
fn qualified<'a>(parts: &[&'a str]) -> Option<(Option<&'a str>, &'a str)> {
    match *parts {
        [name] => Some((None, name)),
        [schema, name] | [_, schema, name] => Some((Some(schema), name)),
        _ => None,
    }
}

/// A name as it was written. A part that holds a dot keeps its quotes, so that no name reads as
/// another one.
fn written(parts: &[&str]) -> Box<str> {
    let mut name = String::new();
    for part in parts {
        if !name.is_empty() {
            name.push('.');
        }
        if part.contains(['.', '"']) {
            name.push('"');
            name.push_str(&part.replace('"', "\"\""));
            name.push('"');
        } else {
            name.push_str(part);
        }
    }
    name.into()
}
