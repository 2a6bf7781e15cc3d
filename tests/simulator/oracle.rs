//! What was promised to the guest: which writes must be readable, and on which image.

use super::image::{Block, Image, PARTS};

/// What one host's image must hold, if it is the disk: the number of the oldest write that each part
/// of a block may show.
#[derive(Debug, Clone)]
struct Floor {
    /// Whatever happens but a power cut.
    now: Vec<Block>,
    /// After a power cut.
    durable: Vec<Block>,
}

#[derive(Debug, Clone, Copy)]
struct Issued {
    first: usize,
    count: usize,
}

/// The disk as its source gave it up.
#[derive(Debug)]
pub struct Released {
    pub attempt: u32,
    floor: Vec<Block>,
    blocks: Vec<Block>,
}

#[derive(Debug)]
pub struct Oracle {
    /// By number, from 1.
    issued: Vec<Issued>,
    /// The newest write of zeroes to each block.
    zeroed: Vec<u32>,
    here: [Floor; 2],
    released: Vec<Released>,
    /// Requests answered to a guest.
    pub answered: u64,
}

impl Oracle {
    pub fn new(blocks: usize) -> Oracle {
        let floor = Floor {
            now: vec![[0; PARTS]; blocks],
            durable: vec![[0; PARTS]; blocks],
        };
        Oracle {
            issued: Vec::new(),
            zeroed: vec![0; blocks],
            here: [floor.clone(), floor],
            released: Vec::new(),
            answered: 0,
        }
    }

    /// The guest begins a write, and numbers it.
    pub fn issue(&mut self, first: usize, count: usize, zeroes: bool) -> u32 {
        self.issued.push(Issued { first, count });
        let stamp = u32::try_from(self.issued.len()).expect("a short run");
        if zeroes {
            self.zeroed[first..first + count].fill(stamp);
        }
        stamp
    }

    /// It was told that the write is done.
    pub fn acknowledge(&mut self, here: usize, first: usize, count: usize, stamp: u32) {
        self.answered += 1;
        for block in &mut self.here[here].now[first..first + count] {
            *block = [stamp; PARTS];
        }
    }

    /// What a flush that begins now has to make durable.
    pub fn to_flush(&self, here: usize) -> Vec<Block> {
        self.here[here].now.clone()
    }

    pub fn flushed(&mut self, here: usize, covered: &[Block]) {
        self.answered += 1;
        for (durable, covered) in self.here[here].durable.iter_mut().zip(covered) {
            for (part, stamp) in durable.iter_mut().zip(covered) {
                *part = (*part).max(*stamp);
            }
        }
    }

    /// What the power cut left is on the disk for good.
    pub fn power_cut(&mut self, here: usize, image: &Image) {
        let floor = &mut self.here[here];
        for (durable, block) in floor.durable.iter_mut().zip(image.blocks()) {
            for (part, stamp) in durable.iter_mut().zip(block) {
                *part = (*part).max(*stamp);
            }
        }
        floor.now.clone_from(&floor.durable);
    }

    pub fn release(&mut self, here: usize, attempt: u32, image: &Image) {
        self.released.push(Released {
            attempt,
            floor: self.here[here].now.clone(),
            blocks: image.blocks().to_vec(),
        });
    }

    /// The copy is the disk from now on: it must be what was given up, and be durable.
    pub fn grant(&mut self, here: usize, attempt: u32, image: &Image) -> Result<(), String> {
        let Some(released) = self.released.iter().rfind(|r| r.attempt == attempt) else {
            return Err("a disk is granted that was never given up".into());
        };
        let differs = |at: &usize| released.blocks[*at] != image.blocks()[*at];
        if let Some(at) = (0..image.blocks().len()).find(differs) {
            return Err(format!(
                "the copy differs from the source: block {at} is {:?} there and {:?} here",
                released.blocks[at],
                image.blocks()[at]
            ));
        }
        let floor = &mut self.here[here];
        floor.now.clone_from(&released.floor);
        floor.durable.clone_from(&released.floor);
        Ok(())
    }

    /// Whether what the image shows is what a guest may see. For the image that is the disk.
    pub fn check(
        &self,
        here: usize,
        image: &Image,
        first: usize,
        count: usize,
    ) -> Result<(), String> {
        for at in first..first + count {
            let (block, floor) = (image.blocks()[at], self.here[here].now[at]);
            for (shows, must) in block.into_iter().zip(floor) {
                self.check_part(at, shows, must)?;
            }
        }
        Ok(())
    }

    fn check_part(&self, at: usize, shows: u32, must: u32) -> Result<(), String> {
        let known = if shows == 0 {
            must == 0 || self.zeroed[at] >= must
        } else {
            let issued = self.issued.get(shows as usize - 1);
            shows >= must && issued.is_some_and(|it| (it.first..it.first + it.count).contains(&at))
        };
        if known {
            return Ok(());
        }
        Err(format!(
            "an acknowledged write is lost: block {at} shows write {shows}, and write {must} was \
             acknowledged (its newest zeroes: {})",
            self.zeroed[at]
        ))
    }
}
