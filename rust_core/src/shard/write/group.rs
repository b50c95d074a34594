//! Responses and pairs grouped by query, with their references checked.

use super::input::{Pairs, Queries, Responses};
use crate::error::{Error, Result};

/// Rows of a table by query: those of query `q` are `rows[starts[q]..starts[q + 1]]`, in their order.
#[derive(Debug)]
pub struct ByQuery {
    starts: Vec<usize>,
    rows: Vec<u32>,
}

impl ByQuery {
    fn new(queries: usize, query_of: &[u32]) -> Self {
        let mut starts = vec![0; queries + 1];
        for query in query_of {
            starts[*query as usize + 1] += 1;
        }
        for query in 0..queries {
            starts[query + 1] += starts[query];
        }
        let mut next = starts.clone();
        let mut rows = vec![0; query_of.len()];
        for (row, query) in query_of.iter().enumerate() {
            rows[next[*query as usize]] = row as u32;
            next[*query as usize] += 1;
        }
        Self { starts, rows }
    }

    /// The rows of a query.
    pub fn of(&self, query: usize) -> &[u32] {
        &self.rows[self.starts[query]..self.starts[query + 1]]
    }
}

/// The rows of each query in both tables; an error names the first row with a dangling reference.
pub fn by_query(
    queries: &Queries,
    responses: &Responses,
    pairs: &Pairs,
) -> Result<(ByQuery, ByQuery)> {
    let query_of_response = (0..responses.rows)
        .map(|row| {
            let query = responses.q.get(row);
            if (query as usize) < queries.rows {
                return Ok(query);
            }
            let expected = format!("a row of queries, less than {}", queries.rows);
            Err(Error::invalid(format!("responses, row {row}, column q"), query, expected))
        })
        .collect::<Result<Vec<u32>>>()?;
    let query_of_pair = (0..pairs.rows)
        .map(|row| query_of_pair(pairs, row, &query_of_response))
        .collect::<Result<Vec<u32>>>()?;
    let responses = ByQuery::new(queries.rows, &query_of_response);
    Ok((responses, ByQuery::new(queries.rows, &query_of_pair)))
}

fn query_of_pair(pairs: &Pairs, row: usize, query_of_response: &[u32]) -> Result<u32> {
    let (chosen, rejected) = (pairs.chosen.get(row), pairs.rejected.get(row));
    let query = |response: u32| query_of_response.get(response as usize).copied();
    let found = format!("chosen {chosen}, rejected {rejected}");
    match (query(chosen), query(rejected)) {
        (Some(one), Some(other)) if one == other && chosen != rejected => Ok(one),
        (Some(_), Some(_)) => {
            Err(Error::invalid(format!("pairs, row {row}"), found, "two responses to one query"))
        }
        _ => {
            let expected = format!("rows of responses, less than {}", query_of_response.len());
            Err(Error::invalid(format!("pairs, row {row}"), found, expected))
        }
    }
}
