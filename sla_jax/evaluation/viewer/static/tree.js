// A search tree out of its rounds (docs/traces.md): a round's branches are nodes, each the child of one of the round
// before. Rounds of a trace and of `search.return_tree` are the same but for names.

/** What `search` in a streamed chunk tells of a round → what a trace's line tells of it. */
export function roundOf(search) {
  const { round, score, margin, token_ids: tokens, tree } = search;
  const chosen = tokens.length ? tree.best : null;
  return { round, score, margin, tokens, chosen, alive: tree.branches.length, branches: tree.branches };
}

export class Tree {
  constructor() {
    this.root = node(0, null, { tokens: [], rank: 0 }, -1, 0);
    this.root.state = "committed";
    this.nodes = [this.root];
    this.leaves = [this.root]; // by the place of their branch in the round before
    this.committed = 0; // tokens
    this.rounds = 0;
    this.winner = null;
  }

  /** Grow by one round. */
  add(round) {
    const parents = this.leaves;
    const before = new Set(round.branches.map((branch) => branch.parent));
    parents.forEach((leaf, place) => {
      if (!before.has(place) && leaf.state === "alive") leaf.state = "given up";
    });
    this.leaves = round.branches.map((branch, lane) => this.#grown(parents[branch.parent], branch, round.round, lane));
    this.committed += round.tokens.length;
    this.rounds += 1;
    if (round.tokens.length) this.winner = this.leaves[round.chosen];
    this.#judge(round);
  }

  /** How many nodes are in each state, for who cannot see the drawing. */
  counts() {
    const found = {};
    for (const { state } of this.nodes.slice(1)) found[state] = (found[state] ?? 0) + 1;
    return found;
  }

  #grown(parent, branch, round, lane) {
    const { score, finish, kept } = branch;
    if (!branch.tokens.length) return Object.assign(parent, { score, finish, kept });
    const grown = node(this.nodes.length, parent, branch, round, lane);
    parent.children.push(grown);
    this.nodes.push(grown);
    return grown;
  }

  #judge(round) {
    if (round.tokens.length) {
      for (let on = this.winner; on; on = on.parent) if (on.start < this.committed) on.state = "committed";
    }
    for (const one of this.nodes.slice(1)) {
      if (one.state !== "alive") continue;
      const lost = one.parent.state === "dropped" || one.start < this.committed;
      if (lost || (this.leaves.includes(one) && !one.kept)) one.state = "dropped";
    }
  }
}

function node(id, parent, branch, round, lane) {
  const start = parent ? parent.end : 0;
  return { ...branch, id, parent, round, lane, start, end: start + branch.tokens.length, children: [], state: "alive" };
}
