// Where the nodes of a tree stand: along by tokens, down by rows. What was committed runs along the first row; whatever
// branches off takes the highest row that is free where it is, so that a long search stays as low as it is wide.

const ORDER = { committed: 0, alive: 1, "given up": 2, dropped: 3 };

/** {rows: node → row, height: rows, width: tokens}. */
export function layout(tree) {
  const rows = new Map([[tree.root, 0]]);
  const taken = []; // row → up to which token something stands there
  let width = 0;
  for (const chain of chains(tree)) {
    const first = chain[0];
    const start = first.parent ? first.parent.end : 0;
    const end = chain[chain.length - 1].end;
    let row = first === tree.root ? 0 : 1;
    while ((taken[row] ?? 0) > start) row += 1;
    taken[row] = end;
    width = Math.max(width, end);
    for (const node of chain) rows.set(node, row);
  }
  return { rows, height: taken.length, width };
}

/** The tree as ways from where they branch off to a leaf, in the order of where that is. */
function chains(tree) {
  const found = [];
  const open = [tree.root];
  while (open.length) {
    const chain = [open.pop()];
    for (let node = chain[0]; node.children.length; ) {
      const [main, ...others] = [...node.children].sort(before);
      open.push(...others);
      chain.push(main);
      node = main;
    }
    found.push(chain);
  }
  return found.sort((a, b) => startOf(a[0]) - startOf(b[0]) || a[0].id - b[0].id);
}

function startOf(node) {
  return node.parent ? node.parent.end : -1;
}

function before(a, b) {
  return ORDER[a.state] - ORDER[b.state] || b.score - a.score || a.rank - b.rank;
}
