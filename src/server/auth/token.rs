//! The direct door: a bearer token for the audience `hookwright`, judged by a TokenReview.

use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};

use super::cache::Cache;
use super::{KEEP_MOST, KEEP_NO, KEEP_YES, Questions, User, digest};
use crate::server::status::{Failure, Reason};

/// What a token must be made for, so that one stolen elsewhere opens nothing here, and one from here nothing
/// elsewhere.
pub(super) const AUDIENCE: &str = "hookwright";
/// Longest token that is looked at.
const LONGEST: usize = 16 << 10;

/// A token as it is kept: never itself.
type Digest = [u8; 32];

/// Judges bearer tokens.
#[derive(Debug)]
pub(super) struct Tokens {
    reviews: Api<TokenReview>,
    questions: Arc<Questions>,
    /// Apart from `refused`, so that made-up tokens push nobody out.
    known: Cache<Digest, Arc<User>>,
    refused: Cache<Digest, ()>,
}

impl Tokens {
    pub(super) fn new(client: Client, questions: Arc<Questions>) -> Self {
        Self {
            reviews: Api::all(client),
            questions,
            known: Cache::new(KEEP_YES, KEEP_MOST),
            refused: Cache::new(KEEP_NO, KEEP_MOST),
        }
    }

    /// Whose token is in the headers.
    pub(super) async fn identify(&self, headers: &HeaderMap) -> Result<Arc<User>, Failure> {
        let token = bearer(headers)?;
        let mut hash = Context::new(&SHA256);
        hash.update(token.as_bytes());
        let digest = digest(hash);
        if let Some(user) = self.known.get(&digest) {
            return Ok(user);
        }
        if self.refused.get(&digest).is_some() {
            return Err(refusal());
        }
        let Some(user) = self.review(token).await? else {
            self.refused.put(digest, ());
            return Err(refusal());
        };
        let user = Arc::new(user);
        self.known.put(digest, Arc::clone(&user));
        Ok(user)
    }

    async fn review(&self, token: &str) -> Result<Option<User>, Failure> {
        let spec =
            TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![AUDIENCE.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let params = PostParams::default();
        Ok(user(self.questions.ask("TokenReview", self.reviews.create(&params, &review)).await?))
    }
}

/// Who a TokenReview says it is. An authenticator that knows nothing of audiences returns none: its word would
/// let a token for anything in.
fn user(review: TokenReview) -> Option<User> {
    let status = review.status?;
    let for_us = status.audiences.unwrap_or_default().iter().any(|audience| audience == AUDIENCE);
    if status.authenticated != Some(true) || !for_us {
        return None;
    }
    User::new(status.user?)
}

fn bearer(headers: &HeaderMap) -> Result<&str, Failure> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(Failure::new(
            Reason::Unauthorized,
            format!("send one Authorization: Bearer TOKEN; {HOW}"),
        ));
    };
    value
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .filter(|token| !token.is_empty() && token.len() <= LONGEST && !token.contains(' '))
        .ok_or_else(|| {
            Failure::new(Reason::Unauthorized, format!("Authorization must be Bearer TOKEN; {HOW}"))
        })
}

const HOW: &str = "get a token with: kubectl create token SERVICEACCOUNT --audience hookwright";

fn refusal() -> Failure {
    let message = format!("the bearer token is not valid for the audience {AUDIENCE}; {HOW}");
    Failure::new(Reason::Unauthorized, message)
}
