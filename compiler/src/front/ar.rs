//! Archives in the making, in the form that `ar` has had since BSD 4.4: for members that lie elsewhere.

/// An archive of `members`, by name and bytes, without a table of symbols.
pub(crate) fn archive<'a>(members: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Vec<u8> {
    let mut bytes = b"!<arch>\n".to_vec();
    for (name, contents) in members {
        let name_len = name.len();
        let len_bytes = name_len + contents.len();
        // Name, date, owner, group, mode, length; a name of any length comes before the contents.
        let header = format!(
            "#1/{name_len:<13}{:<12}{:<6}{:<6}{:<8}{len_bytes:<10}`\n",
            0, 0, 0, 644
        );
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(contents);
        if bytes.len() % 2 == 1 {
            bytes.push(b'\n');
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::archive;

    #[test]
    fn others_read_it() {
        let long = "a name that is longer than sixteen bytes.o";
        let bytes = archive([("a.o", &b"odd"[..]), (long, b"even")]);
        let file = object::read::archive::ArchiveFile::parse(&bytes[..]).unwrap();
        let members: Vec<_> = file
            .members()
            .map(|member| {
                let member = member.unwrap();
                let name = String::from_utf8(member.name().to_vec()).unwrap();
                (name, member.data(&bytes[..]).unwrap().to_vec())
            })
            .collect();
        assert_eq!(members[0], ("a.o".to_owned(), b"odd".to_vec()));
        assert_eq!(members[1], (long.to_owned(), b"even".to_vec()));
    }
}
