//! Lists, one for each object, in one piece of memory: there may be a hundred thousand objects.

/// Lists that are numbered from 0.
#[derive(Debug)]
pub(crate) struct Lists<T> {
    /// Where each starts among the items, and how many there are.
    spans: Vec<(usize, usize)>,
    items: Vec<T>,
}

impl<T> Default for Lists<T> {
    fn default() -> Self {
        Self {
            spans: Vec::new(),
            items: Vec::new(),
        }
    }
}

impl<T: Copy> Lists<T> {
    /// Makes room for `count` lists.
    pub(crate) fn reserve(&mut self, count: usize) {
        self.spans.reserve(count);
    }

    /// Begins with the next list, to which `len` items are going to be added.
    pub(crate) fn begin(&mut self, len: usize) {
        self.spans.push((self.items.len(), len));
        self.items.reserve(len);
    }

    /// Adds an item to the last list.
    #[inline]
    pub(crate) fn push(&mut self, item: T) {
        self.items.push(item);
    }

    /// What has been added to the last list.
    pub(crate) fn last(&mut self) -> &mut [T] {
        let start = self.spans.last().map_or(0, |&(start, _)| start);
        self.items.get_mut(start..).unwrap_or_default()
    }

    /// List `number`; nothing, if there is none.
    pub(crate) fn list(&self, number: usize) -> &[T] {
        let &(start, len) = self.spans.get(number).unwrap_or(&(0, 0));
        self.items.get(start..start + len).unwrap_or_default()
    }

    /// Item `index` of list `number`.
    #[inline]
    pub(crate) fn get(&self, number: usize, index: usize) -> Option<T> {
        let &(start, len) = self.spans.get(number)?;
        let place = (index < len).then(|| start + index)?;
        self.items.get(place).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::Lists;

    #[test]
    fn each_is_what_was_added_to_it() {
        let mut lists = Lists::default();
        assert_eq!(lists.get(0, 0), None);
        let all = [&[1, 2][..], &[], &[3], &[]];
        for list in all {
            lists.begin(list.len());
            list.iter().for_each(|&item| lists.push(item));
            assert_eq!(lists.last(), list);
        }
        for (number, list) in all.into_iter().enumerate() {
            assert_eq!(lists.list(number), list);
            for index in 0..3 {
                assert_eq!(lists.get(number, index), list.get(index).copied());
            }
        }
        assert_eq!(lists.get(all.len(), 0), None);
    }
}
