//! The machinery of an OAuth 2.0 authorization server: apps, codes, grants, tokens. What a provider's answers and
//! refusals look like is the provider's own business; here is only what is granted, what is dead, and why.
//!
//! Tokens come from the system's randomness, never from the seed: a token of an earlier run is unknown to this one.

mod consent;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::Rng;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub use consent::{Choice, ConsentRequest, consent_answer};

use crate::domain::secret::Secret;

/// Expired access tokens are forgotten once there are more tokens than this.
const ACCESS_TOKENS_MAX: usize = 50_000;

/// An application registered at the provider.
#[derive(Debug, Clone)]
pub struct App {
    pub client_id: String,
    pub client_secret: Secret,
    /// Exact matches only. Empty: any redirect to a loopback host.
    pub redirect_uris: Vec<String>,
}

/// How a provider's tokens behave.
#[derive(Debug, Clone)]
pub struct TokenRules {
    pub access_life: Duration,
    pub code_life: Duration,
    /// Bytes of randomness in an access token; its text is a third longer.
    pub access_bytes: usize,
    /// A second consent of one app to one account answers with the refresh token that is there already.
    pub one_grant_per_account: bool,
}

/// What a token endpoint hands out.
#[derive(Debug, Clone)]
pub struct Issued {
    pub access_token: String,
    pub refresh_token: String,
    pub account: String,
    pub scopes: Arc<[String]>,
    pub lives: Duration,
}

/// What a good access token stands for.
#[derive(Debug, Clone)]
pub struct Pass {
    pub client_id: String,
    pub account: String,
    pub scopes: Arc<[String]>,
    pub expires_at_ms: i64,
}

/// Why the caller is not the app that it says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppFault {
    Unknown,
    WrongSecret,
}

/// Why a code or a refresh token buys nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantFault {
    /// Never issued, or forgotten.
    Unknown,
    /// A code past its life.
    Expired,
    /// A code redeemed before.
    Used,
    /// A refresh token that was rotated away.
    Replaced,
    /// The grant was taken back.
    Revoked,
    /// Issued to another app.
    OtherApp,
    /// Not the redirect URI of the authorize request.
    OtherRedirect,
    /// No verifier, or not the one that the challenge was made from.
    WrongVerifier,
}

/// Why an access token opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BearerFault {
    Unknown,
    Expired { at_ms: i64 },
}

struct Grant {
    client_id: String,
    account: String,
    scopes: Arc<[String]>,
    revoked: bool,
    /// How often the refresh token was replaced.
    generation: u32,
    refresh_token: String,
}

struct Code {
    grant_of: (String, String),
    scopes: Arc<[String]>,
    redirect_uri: String,
    challenge: Option<String>,
    expires_at_ms: i64,
    used: bool,
}

struct Access {
    grant: usize,
    scopes: Arc<[String]>,
    expires_at_ms: i64,
    dead: bool,
}

/// A refresh token and what became of it.
struct Refresh {
    grant: usize,
    generation: u32,
    dead: bool,
    redeemed: u64,
    replays: u64,
}

#[derive(Default)]
struct Inner {
    grants: Vec<Grant>,
    codes: HashMap<String, Code>,
    access: HashMap<String, Access>,
    refresh: HashMap<String, Refresh>,
}

/// One provider's authorization server.
pub struct AuthServer {
    rules: TokenRules,
    apps: Vec<App>,
    inner: Mutex<Inner>,
}

impl AuthServer {
    pub fn new(apps: Vec<App>, rules: TokenRules) -> Self {
        Self { rules, apps, inner: Mutex::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn app(&self, client_id: &str) -> Option<&App> {
        self.apps.iter().find(|app| app.client_id == client_id)
    }

    pub fn check_app(&self, client_id: &str, client_secret: &str) -> Result<(), AppFault> {
        let app = self.app(client_id).ok_or(AppFault::Unknown)?;
        if app.client_secret.expose() == client_secret { Ok(()) } else { Err(AppFault::WrongSecret) }
    }

    /// The code that a consenting account owner sends back with the browser.
    pub fn issue_code(&self, asked: &ConsentRequest, account: &str, now_ms: i64) -> String {
        let code = random_text(24);
        let entry = Code {
            grant_of: (asked.client_id.clone(), account.to_owned()),
            scopes: asked.scopes.clone().into(),
            redirect_uri: asked.redirect_uri.clone(),
            challenge: asked.code_challenge.clone(),
            expires_at_ms: now_ms + millis(self.rules.code_life),
            used: false,
        };
        self.inner().codes.insert(code.clone(), entry);
        code
    }

    /// Trades a code for tokens. The code is spent by the first good redemption.
    pub fn redeem_code(
        &self,
        client_id: &str,
        code: &str,
        redirect_uri: &str,
        verifier: Option<&str>,
        now_ms: i64,
    ) -> Result<Issued, GrantFault> {
        let mut inner = self.inner();
        let entry = inner.codes.get_mut(code).ok_or(GrantFault::Unknown)?;
        entry.check(client_id, redirect_uri, verifier, now_ms)?;
        entry.used = true;
        let (account, scopes) = (entry.grant_of.1.clone(), entry.scopes.clone());
        let grant = inner.grant_for(client_id, &account, scopes, self.rules.one_grant_per_account);
        Ok(inner.issue_access(grant, &self.rules, now_ms))
    }

    /// Trades a refresh token for an access token. With `rotate` the refresh token dies and another takes its place.
    pub fn redeem_refresh(
        &self,
        client_id: &str,
        refresh_token: &str,
        rotate: bool,
        now_ms: i64,
    ) -> Result<Issued, GrantFault> {
        let mut inner = self.inner();
        let Inner { grants, refresh, .. } = &mut *inner;
        let entry = refresh.get_mut(refresh_token).ok_or(GrantFault::Unknown)?;
        let (index, grant) = (entry.grant, &mut grants[entry.grant]);
        if grant.client_id != client_id {
            return Err(GrantFault::OtherApp);
        }
        if entry.dead {
            entry.replays += 1;
            return Err(if grant.revoked { GrantFault::Revoked } else { GrantFault::Replaced });
        }
        entry.redeemed += 1;
        if rotate {
            entry.dead = true;
            inner.rotate(index);
        }
        Ok(inner.issue_access(index, &self.rules, now_ms))
    }

    pub fn bearer(&self, access_token: &str, now_ms: i64) -> Result<Pass, BearerFault> {
        let inner = self.inner();
        let access = inner.access.get(access_token).ok_or(BearerFault::Unknown)?;
        if access.dead {
            return Err(BearerFault::Unknown);
        }
        if access.expires_at_ms <= now_ms {
            return Err(BearerFault::Expired { at_ms: access.expires_at_ms });
        }
        let grant = &inner.grants[access.grant];
        Ok(Pass {
            client_id: grant.client_id.clone(),
            account: grant.account.clone(),
            scopes: access.scopes.clone(),
            expires_at_ms: access.expires_at_ms,
        })
    }

    /// The account and scopes behind a refresh token that is still good.
    pub fn refresh_token_owner(
        &self,
        client_id: &str,
        refresh_token: &str,
    ) -> Option<(String, Arc<[String]>)> {
        let inner = self.inner();
        let entry = inner.refresh.get(refresh_token).filter(|entry| !entry.dead)?;
        let grant = inner.grants.get(entry.grant).filter(|grant| grant.client_id == client_id)?;
        Some((grant.account.clone(), grant.scopes.clone()))
    }

    /// Kills a refresh token and its grant. Access tokens live on until they expire. Says whether there was one.
    pub fn revoke_refresh_token(&self, client_id: &str, refresh_token: &str) -> bool {
        let mut inner = self.inner();
        let Inner { grants, refresh, .. } = &mut *inner;
        let Some(entry) = refresh.get_mut(refresh_token) else { return false };
        if entry.dead || grants[entry.grant].client_id != client_id {
            return false;
        }
        entry.dead = true;
        grants[entry.grant].revoked = true;
        true
    }

    /// A token that is used again after its end has been stolen, for all that a strict provider knows: its account's grant
    /// ends with everything that was issued.
    pub fn revoke_replayed(&self, refresh_token: &str) {
        let account = {
            let inner = self.inner();
            inner.refresh.get(refresh_token).map(|entry| inner.grants[entry.grant].account.clone())
        };
        if let Some(account) = account {
            self.revoke_account(&account);
        }
    }

    /// What an account's admin does by uninstalling: grants, refresh tokens and access tokens die at once.
    /// Returns how many grants died.
    pub fn revoke_account(&self, account: &str) -> usize {
        let mut inner = self.inner();
        let Inner { grants, access, refresh, .. } = &mut *inner;
        let live = grants.iter_mut().filter(|grant| grant.account == account && !grant.revoked);
        let revoked = live.map(|grant| grant.revoked = true).count();
        refresh
            .values_mut()
            .filter(|entry| grants[entry.grant].account == account)
            .for_each(|e| e.dead = true);
        access
            .values_mut()
            .filter(|entry| grants[entry.grant].account == account)
            .for_each(|e| e.dead = true);
        revoked
    }

    /// Every access token expires this instant. Returns how many did.
    pub fn expire_access_tokens(&self, now_ms: i64) -> usize {
        let mut inner = self.inner();
        let live = inner.access.values_mut().filter(|access| !access.dead && access.expires_at_ms > now_ms);
        live.map(|access| access.expires_at_ms = now_ms).count()
    }

    /// Every code and token that was ever handed out and is not forgotten, for whoever looks for them where they must
    /// not be.
    pub fn handed_out(&self) -> Vec<Secret> {
        let inner = self.inner();
        let texts = inner.codes.keys().chain(inner.access.keys()).chain(inner.refresh.keys());
        texts.map(|text| Secret::from(text.as_str())).collect()
    }

    /// How often each refresh token was redeemed, and how often after its death; no token is shown.
    pub fn redemptions(&self) -> Value {
        let inner = self.inner();
        let mut entries: Vec<&Refresh> = inner.refresh.values().collect();
        entries.sort_by_key(|entry| (entry.grant, entry.generation));
        let rows = entries.into_iter().map(|entry| {
            json!({
                "grant": entry.grant, "account": inner.grants[entry.grant].account, "generation": entry.generation,
                "redeemed": entry.redeemed, "dead": entry.dead, "replays": entry.replays,
            })
        });
        rows.collect()
    }
}

impl Code {
    fn check(
        &self,
        client_id: &str,
        redirect_uri: &str,
        verifier: Option<&str>,
        now_ms: i64,
    ) -> Result<(), GrantFault> {
        let proof = verifier.map(|text| URL_SAFE_NO_PAD.encode(Sha256::digest(text)));
        match () {
            () if self.grant_of.0 != client_id => Err(GrantFault::OtherApp),
            () if self.used => Err(GrantFault::Used),
            () if self.expires_at_ms <= now_ms => Err(GrantFault::Expired),
            () if self.redirect_uri != redirect_uri => Err(GrantFault::OtherRedirect),
            () if self.challenge.is_some() && self.challenge != proof => Err(GrantFault::WrongVerifier),
            () => Ok(()),
        }
    }
}

impl Inner {
    /// The grant of one app on one account: the one that is there when grants are shared, else a new one.
    fn grant_for(&mut self, client_id: &str, account: &str, scopes: Arc<[String]>, shared: bool) -> usize {
        let same = |grant: &Grant| grant.client_id == client_id && grant.account == account && !grant.revoked;
        if let Some(index) = self.grants.iter().position(same).filter(|_| shared) {
            self.grants[index].scopes = scopes;
            return index;
        }
        self.grants.push(Grant {
            client_id: client_id.to_owned(),
            account: account.to_owned(),
            scopes,
            revoked: false,
            generation: 0,
            refresh_token: String::new(),
        });
        let index = self.grants.len() - 1;
        self.new_refresh_token(index);
        index
    }

    fn rotate(&mut self, grant: usize) {
        self.grants[grant].generation += 1;
        self.new_refresh_token(grant);
    }

    fn new_refresh_token(&mut self, grant: usize) {
        let token = random_text(36);
        let generation = self.grants[grant].generation;
        self.refresh
            .insert(token.clone(), Refresh { grant, generation, dead: false, redeemed: 0, replays: 0 });
        self.grants[grant].refresh_token = token;
    }

    fn issue_access(&mut self, grant: usize, rules: &TokenRules, now_ms: i64) -> Issued {
        if self.access.len() >= ACCESS_TOKENS_MAX {
            self.access.retain(|_, access| access.expires_at_ms > now_ms);
        }
        let token = random_text(rules.access_bytes);
        let Grant { account, scopes, refresh_token, .. } = &self.grants[grant];
        let expires_at_ms = now_ms + millis(rules.access_life);
        self.access
            .insert(token.clone(), Access { grant, scopes: scopes.clone(), expires_at_ms, dead: false });
        Issued {
            access_token: token,
            refresh_token: refresh_token.clone(),
            account: account.clone(),
            scopes: scopes.clone(),
            lives: rules.access_life,
        }
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 2)
}

fn random_text(bytes: usize) -> String {
    let mut buffer = vec![0; bytes];
    rand::rng().fill(buffer.as_mut_slice());
    URL_SAFE_NO_PAD.encode(buffer)
}
