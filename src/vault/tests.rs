//! The vault as its users see it.

use proptest::prelude::*;

use super::*;

const PLAIN: &[u8] = b"refresh-token-0123456789";

fn grant(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn bound() -> Bound<'static> {
    Bound { connection: ConnectionId(7), grant: grant(1), column: "refresh_token" }
}

fn request() -> HandedOver {
    HandedOver { connection: ConnectionId(7), request: grant(1) }
}

fn vault() -> Vault {
    Vault::new(&generate_key(), &[]).expect("a good key")
}

#[test]
fn opens_what_it_sealed() {
    let vault = vault();
    for plain in [PLAIN, b"", &[0; 10_000]] {
        let sealed = vault.seal(plain, &bound());
        assert_eq!(vault.open(&sealed, &bound()).expect("opens").as_slice(), plain);
    }
}

#[test]
fn hides_the_plaintext_and_never_repeats_itself() {
    let vault = vault();
    let (one, other) = (vault.seal(PLAIN, &bound()), vault.seal(PLAIN, &bound()));
    assert_ne!(one, other);
    assert!(!one.windows(4).any(|window| PLAIN.windows(4).any(|part| part == window)));
}

#[test]
fn a_value_opens_only_in_its_own_place() {
    let vault = vault();
    let sealed = vault.seal(PLAIN, &bound());
    let others = [
        Bound { connection: ConnectionId(8), ..bound() },
        Bound { grant: grant(2), ..bound() },
        Bound { column: "access_token", ..bound() },
        Bound { column: "refresh_toke", ..bound() },
        Bound { column: "", ..bound() },
    ];
    for other in others {
        let error = vault.open(&sealed, &other).expect_err("another place");
        assert_eq!(error, VaultError::Refused((&other).into()));
        assert!(error.to_string().contains("sealed for another row"), "{error}");
    }
}

#[test]
fn a_cut_or_altered_value_is_refused_at_every_byte() {
    let vault = vault();
    let sealed = vault.seal(PLAIN, &bound());
    for index in 0..sealed.len() {
        assert!(vault.open(&sealed[..index], &bound()).is_err(), "cut to {index}");
        let mut altered = sealed.clone();
        altered[index] ^= 1;
        assert!(vault.open(&altered, &bound()).is_err(), "altered at {index}");
    }
}

#[test]
fn previous_keys_open_but_do_not_seal() {
    let (old_key, new_key) = (generate_key(), generate_key());
    let old = Vault::new(&old_key, &[]).expect("a good key");
    let both = Vault::new(&new_key, &[old_key.clone(), old_key.clone(), new_key.clone()]).expect("good keys");
    let sealed = old.seal(PLAIN, &bound());
    assert_eq!(both.open(&sealed, &bound()).expect("opens").as_slice(), PLAIN);
    assert_eq!(both.previous_key_ids().collect::<Vec<_>>(), [old.key_id()], "each key once");
    assert_eq!(key_id_of(&both.seal(PLAIN, &bound())).as_deref(), Some(both.key_id()));
    assert_ne!(both.key_id(), old.key_id());
}

#[test]
fn a_missing_key_is_named_with_its_remedy() {
    let old = vault();
    let error = vault().open(&old.seal(PLAIN, &bound()), &bound()).expect_err("sealed by another key");
    assert_eq!(error, VaultError::UnknownKey { key_id: old.key_id().to_owned() });
    let text = error.to_string();
    assert!(text.contains(old.key_id()) && text.contains("`[vault] previous_key_files`"), "{text}");
}

#[test]
fn bad_keys_are_named_and_not_quoted() {
    let check = |active: &str, previous: &[&str], expected: &str| {
        let previous: Vec<Secret> = previous.iter().map(|key| Secret::new(*key)).collect();
        let error = Vault::new(&Secret::new(active), &previous).expect_err("a bad key").to_string();
        assert!(error.starts_with(expected), "{error}");
        assert!(error.contains("`fieldmirror key generate`"), "{error}");
        assert!(!error.contains("c2hvcnQ"), "{error}");
    };
    let good = generate_key();
    check("", &[], "the vault key is empty");
    check("c2hvcnQ=", &[], "the vault key has 5 bytes");
    check("c2hvcnQ*", &[], "the vault key is not base64");
    check(good.expose(), &[good.expose(), "c2hvcnQ="], "previous vault key 2 has 5 bytes");
}

#[test]
fn debug_output_tells_ids_only() {
    let key = generate_key();
    let vault = Vault::new(&key, &[]).expect("a good key");
    let expected = format!("Vault {{ key_id: {:?}, previous_key_ids: [] }}", vault.key_id());
    assert_eq!(format!("{vault:?}"), expected);
}

#[test]
fn daemons_with_one_key_share_the_box() {
    let (old_key, new_key) = (generate_key(), generate_key());
    let one = Vault::new(&old_key, &[]).expect("a good key");
    let other = Vault::new(&old_key, &[]).expect("a good key");
    let rotated = Vault::new(&new_key, &[old_key]).expect("good keys");
    assert_eq!(one.public_key(), other.public_key());
    assert_ne!(one.public_key(), rotated.public_key());
    let sealed = request().seal(&one.public_key(), PLAIN);
    for opener in [&one, &other, &rotated] {
        assert_eq!(opener.open_box(&sealed, &request()).expect("opens").as_slice(), PLAIN);
    }
    assert_eq!(vault().open_box(&sealed, &request()), Err(VaultError::BoxRefused));
}

#[test]
fn what_an_old_key_sealed_is_sealed_anew() {
    let (old_key, new_key) = (generate_key(), generate_key());
    let old = Vault::new(&old_key, &[]).expect("a good key");
    let both = Vault::new(&new_key, &[old_key]).expect("good keys");
    let new = Vault::new(&new_key, &[]).expect("a good key");
    let sealed = both.reseal(&old.seal(PLAIN, &bound()), &bound()).expect("opens").expect("sealed anew");
    assert_eq!(new.open(&sealed, &bound()).expect("opens").as_slice(), PLAIN);
    assert_eq!(both.reseal(&sealed, &bound()), Ok(None), "it is done");
    let elsewhere = Bound { connection: ConnectionId(8), ..bound() };
    let moved = both.reseal(&old.seal(PLAIN, &bound()), &elsewhere);
    assert_eq!(moved, Err(VaultError::Refused((&elsewhere).into())), "what was moved is not made good");
    let foreign = vault().seal(PLAIN, &bound());
    assert!(matches!(both.reseal(&foreign, &bound()), Err(VaultError::UnknownKey { .. })));

    let sealed = request().seal(&old.public_key(), PLAIN);
    let sealed = both.reseal_box(&sealed).expect("opens").expect("sealed anew");
    assert_eq!(new.open_box(&sealed, &request()).expect("opens").as_slice(), PLAIN);
    let elsewhere = HandedOver { connection: ConnectionId(8), ..request() };
    assert_eq!(new.open_box(&sealed, &elsewhere), Err(VaultError::BoxMoved(ConnectionId(8))));
    assert_eq!(both.reseal_box(&sealed), Ok(None), "it is done");
    assert_eq!(both.reseal_box(&foreign), Err(VaultError::BoxRefused));
    assert!(both.has(old.key_id()) && both.has(new.key_id()) && !new.has(old.key_id()));
}

#[test]
fn macs_hold_for_their_label_and_data_only() {
    let (old_key, new_key) = (generate_key(), generate_key());
    let old = Vault::new(&old_key, &[]).expect("a good key");
    let rotated = Vault::new(&new_key, &[old_key]).expect("good keys");
    let tag = old.mac("state", b"data");
    assert!(old.mac_verify("state", b"data", &tag));
    assert!(rotated.mac_verify("state", b"data", &tag), "made before the rotation");
    let refused: [(&str, &[u8], &[u8]); 6] = [
        ("ticket", b"data", &tag),
        ("state", b"date", &tag),
        ("stated", b"ata", &tag),
        ("stat", b"edata", &tag),
        ("state", b"data", &tag[..31]),
        ("state", b"data", b""),
    ];
    for (label, data, tag) in refused {
        assert!(!old.mac_verify(label, data, tag), "{label} {data:?}");
    }
    assert!(!vault().mac_verify("state", b"data", &tag), "another key");
}

proptest! {
    #[test]
    fn any_bytes_are_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let vault = vault();
        prop_assert!(vault.open(&bytes, &bound()).is_err());
        prop_assert!(vault.open_box(&bytes, &request()).is_err());
        prop_assert!(!vault.mac_verify("state", b"data", &bytes));
    }
}
